{{/* Labels of every object. */}}
{{- define "karst.labels" -}}
{{- if ne .Release.Namespace "karst-system" }}{{ fail "Karst is installed into the namespace karst-system, and into no other" }}{{ end -}}
app.kubernetes.io/part-of: karst
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}
{{- define "karst.tag" -}}
{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- define "karst.pullSecrets" -}}
{{- if .Values.image.pullSecrets }}
imagePullSecrets:
{{- range .Values.image.pullSecrets }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}
{{- define "karst.proxyImage" -}}
{{ printf "%s/waypoint:%s" .Values.image.registry (include "karst.tag" .) }}
{{- end }}
