{{- /* What the pods of workers and of the label sets' job share: who runs, with which settings, secrets and folders. */ -}}

{{- define "xnli.podSecurity" -}}
serviceAccountName: {{ include "xnli.serviceAccount" . }}
automountServiceAccountToken: false
{{- /* Variables of every Service in the namespace: the worker passes over them, and nobody else here needs them. */}}
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "xnli.container" -}}
image: {{ include "xnli.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
envFrom:
  - configMapRef: {name: {{ include "xnli.fullname" . }}}
{{- if or .Values.secretVariables .Values.secretFiles .Values.extraVariables }}
env:
  {{- if .Values.secretFiles }}
  - {name: XNLI_SECRETS_DIR, value: /etc/xnli/secrets}
  {{- end }}
  {{- range $name, $from := .Values.secretVariables }}
  - name: {{ $name }}
    valueFrom:
      secretKeyRef: {name: {{ $from.name }}, key: {{ $from.key }}}
  {{- end }}
  {{- with .Values.extraVariables }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "xnli.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if .Values.secretFiles }}
- {name: secrets, mountPath: /etc/xnli/secrets, readOnly: true}
{{- end }}
{{- range $at, $mount := .Values.secretMounts }}
- {name: secret-{{ $at }}, mountPath: {{ $mount.path }}, readOnly: true}
{{- end }}
{{- end -}}

{{- define "xnli.volumes" -}}
- name: tmp
  emptyDir: {}
{{- if .Values.secretFiles }}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      {{- range $file, $from := .Values.secretFiles }}
      - secret:
          name: {{ $from.name }}
          items: [{key: {{ $from.key }}, path: {{ $file }}}]
      {{- end }}
{{- end }}
{{- range $at, $mount := .Values.secretMounts }}
- name: secret-{{ $at }}
  secret: {secretName: {{ $mount.name }}, defaultMode: 0440}
{{- end }}
{{- end -}}
