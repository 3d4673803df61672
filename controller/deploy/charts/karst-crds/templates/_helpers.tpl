{{/* Labels of every object. */}}
{{- define "karst.labels" -}}
app.kubernetes.io/part-of: karst
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{/* Which pods a policy is for. */}}
{{- define "karst.selector" -}}
description: Pods that the policy is for; all of its namespace, or of the mesh for the root namespace, if it is left out.
type: object
properties:
  matchLabels:
    description: Labels that a pod must all have.
    type: object
    maxProperties: 64
    additionalProperties:
      description: The label's whole value.
      type: string
      maxLength: 63
      x-kubernetes-validations:
        - message: there are no wildcards in a selector
          rule: "!self.contains('*')"
    x-kubernetes-validations:
      - message: there are no wildcards in a selector
        rule: "self.all(key, !key.contains('*'))"
{{- end }}

{{/* Status of a security policy. Istio writes other fields and conditions into it. */}}
{{- define "karst.policyStatus" -}}
description: What came of it.
type: object
x-kubernetes-preserve-unknown-fields: true
properties:
  conditions:
    description: What holds and what does not.
    type: array
    x-kubernetes-list-type: atomic
    items:
      description: A condition.
      type: object
      x-kubernetes-preserve-unknown-fields: true
      required: [type, status]
      properties:
        lastTransitionTime:
          description: Since when.
          type: string
          format: date-time
        message:
          description: For people.
          type: string
          maxLength: 32768
        observedGeneration:
          description: Generation of the policy that was looked at.
          x-kubernetes-int-or-string: true
        reason:
          description: For programs.
          type: string
          maxLength: 1024
        status:
          description: Whether it holds.
          type: string
          enum: ["True", "False", Unknown]
        type:
          description: What it is about.
          type: string
          minLength: 1
          maxLength: 316
{{- end }}
