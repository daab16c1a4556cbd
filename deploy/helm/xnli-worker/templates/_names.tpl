{{- define "xnli.fullname" -}}
{{- $name := contains .Chart.Name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) -}}
{{- trunc 50 $name | trimSuffix "-" -}}
{{- end -}}

{{- define "xnli.selector" -}}
app.kubernetes.io/name: xnli-worker
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "xnli.workers" -}}
{{ include "xnli.selector" . }}
app.kubernetes.io/component: worker
{{- end -}}

{{- define "xnli.labels" -}}
{{ include "xnli.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "xnli.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}{{ .Values.serviceAccount.name | default (include "xnli.fullname" .) }}{{- else -}}{{ .Values.serviceAccount.name | default "default" }}{{- end -}}
{{- end -}}

{{- define "xnli.image" -}}
{{- if .Values.image.digest -}}{{ .Values.image.repository }}@{{ .Values.image.digest }}{{- else -}}{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{- end -}}
{{- end -}}
