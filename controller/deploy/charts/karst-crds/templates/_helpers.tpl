{{/* Labels of every object. */}}
{{- define "karst.labels" -}}
app.kubernetes.io/part-of: karst
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}
