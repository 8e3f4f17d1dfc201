{{- define "keystead.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- /* The name of the objects; short enough that "-migrate" and the like fit behind it. */}}
{{- define "keystead.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- $name := include "keystead.name" . }}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "keystead.selector" -}}
app.kubernetes.io/name: {{ include "keystead.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "keystead.labels" -}}
{{ include "keystead.selector" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "keystead.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- define "keystead.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "keystead.fullname" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{- /* Which Kubernetes 1 it is; providers add a "+". */}}
{{- define "keystead.minor" -}}
{{ regexFind "[0-9]+" (toString .Capabilities.KubeVersion.Minor) }}
{{- end }}

{{- define "keystead.scheme" -}}
{{ ternary "https" "http" (ne .Values.tls.existingSecret "") }}
{{- end }}

{{- define "keystead.url" -}}
{{ include "keystead.scheme" . }}://{{ include "keystead.fullname" . }}.{{ .Release.Namespace }}.svc:{{ .Values.service.port }}
{{- end }}

{{- define "keystead.publicBaseUrl" -}}
{{- if .Values.publicBaseUrl }}{{ .Values.publicBaseUrl }}
{{- else if and .Values.ingress.enabled .Values.ingress.hosts }}https://{{ first .Values.ingress.hosts }}
{{- else if and .Values.httpRoute.enabled .Values.httpRoute.hostnames }}https://{{ first .Values.httpRoute.hostnames }}
{{- end }}
{{- end }}

{{- /* What cannot work is refused here, in words, rather than by a pod that does not start. */}}
{{- define "keystead.check" -}}
{{- if not .Values.serverName }}{{ fail "serverName is needed: the part of user ids behind the colon, like example.org" }}{{ end }}
{{- $s := .Values.secrets }}
{{- range $name, $secret := $s }}
{{- if and $secret.existingSecret $secret.value }}{{ fail (printf "secrets.%s: give either existingSecret or value" $name) }}{{ end }}
{{- end }}
{{- if not (or $s.databaseUrl.existingSecret $s.databaseUrl.value) }}{{ fail "secrets.databaseUrl is needed: existingSecret names a Secret with the URL of PostgreSQL" }}{{ end }}
{{- if hasPrefix "sqlite:" $s.databaseUrl.value }}{{ fail "secrets.databaseUrl: several pods need PostgreSQL" }}{{ end }}
{{- with .Values.media }}
{{- if and .s3.bucket .persistence.enabled }}{{ fail "media: set either s3.bucket or persistence.enabled" }}{{ end }}
{{- if not (or .s3.bucket .persistence.enabled) }}{{ fail "media: files of users need a place that all pods share: s3.bucket or persistence.enabled" }}{{ end }}
{{- if .s3.bucket }}
{{- range $name := list "s3AccessKeyId" "s3SecretAccessKey" }}
{{- $secret := get $s $name }}
{{- if not (or $secret.existingSecret $secret.value) }}{{ fail (printf "secrets.%s is needed with media.s3.bucket" $name) }}{{ end }}
{{- end }}
{{- end }}
{{- end }}
{{- if and .Values.autoscaling.enabled (lt (int .Values.autoscaling.maxReplicas) (int .Values.autoscaling.minReplicas)) }}{{ fail "autoscaling: maxReplicas is less than minReplicas" }}{{ end }}
{{- if and .Values.autoscaling.enabled (not (or .Values.autoscaling.targetCPUUtilizationPercentage .Values.autoscaling.targetRequestsInFlight)) }}{{ fail "autoscaling: there is no target" }}{{ end }}
{{- end }}

{{- /* A setting as the server reads it from the environment. Helm reads whole numbers as floats. */}}
{{- define "keystead.setting" -}}
{{- if kindIs "slice" . }}{{ join "," . }}
{{- else if kindIs "float64" . }}{{ if eq . (floor .) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- else }}{{ . }}
{{- end }}
{{- end }}

{{- /* The settings that are no secrets, as the data of a ConfigMap. */}}
{{- define "keystead.settings" -}}
{{- $own := dict
  "KEYSTEAD_DATA_DIR" "/var/lib/keystead"
  "KEYSTEAD_LOG_FORMAT" "json"
  "KEYSTEAD_SERVER_LISTEN" (printf "0.0.0.0:%d" (int .Values.service.port))
  "KEYSTEAD_SERVER_NAME" .Values.serverName
  "KEYSTEAD_SERVER_STOP_DELAY_SECONDS" (toString (int .Values.drain.delaySeconds))
  "KEYSTEAD_SERVER_STOP_GRACE_SECONDS" (toString (int .Values.drain.graceSeconds)) }}
{{- with include "keystead.publicBaseUrl" . }}{{ $_ := set $own "KEYSTEAD_SERVER_PUBLIC_BASE_URL" . }}{{ end }}
{{- with .Values.media }}
{{- if .s3.bucket }}
{{- $_ := set $own "KEYSTEAD_MEDIA_S3_BUCKET" .s3.bucket }}
{{- $_ := set $own "KEYSTEAD_MEDIA_S3_REGION" .s3.region }}
{{- $_ := set $own "KEYSTEAD_MEDIA_S3_PATH_STYLE" (toString .s3.pathStyle) }}
{{- $_ := set $own "KEYSTEAD_MEDIA_S3_ALLOW_HTTP" (toString .s3.allowHttp) }}
{{- with .s3.endpoint }}{{ $_ := set $own "KEYSTEAD_MEDIA_S3_ENDPOINT" . }}{{ end }}
{{- else }}
{{- $_ := set $own "KEYSTEAD_MEDIA_FOLDER" "/var/lib/keystead/media" }}
{{- end }}
{{- end }}
{{- if .Values.tls.existingSecret }}
{{- $_ := set $own "KEYSTEAD_SERVER_TLS_CERTIFICATE" "/etc/keystead/tls/tls.crt" }}
{{- $_ := set $own "KEYSTEAD_SERVER_TLS_PRIVATE_KEY" "/etc/keystead/tls/tls.key" }}
{{- end }}
{{- range $secret := include "keystead.secrets" . | fromYamlArray }}{{ $_ := set $own $secret.variable (printf "/etc/keystead/secrets/%s" $secret.path) }}{{ end }}
{{- range $section, $settings := .Values.settings }}
{{- range $name, $value := $settings }}
{{- $variable := printf "KEYSTEAD_%s_%s" $section $name | upper }}
{{- if and (hasKey $own $variable) (ne $variable "KEYSTEAD_LOG_FORMAT") }}{{ fail (printf "settings.%s.%s is set by other values of the chart" $section $name) }}{{ end }}
{{- $_ := set $own $variable (include "keystead.setting" $value) }}
{{- end }}
{{- end }}
{{- range $variable, $value := $own }}
{{ $variable }}: {{ $value | quote }}
{{- end }}
{{- end }}

{{- /* The secrets that are given: which Secret, which key, the file and the setting that names it. */}}
{{- define "keystead.secrets" -}}
{{- $made := printf "%s-secrets" (include "keystead.fullname" .) }}
{{- $paths := dict "databaseUrl" "database-url" "keyboxMasterKey" "keybox-master-key" "registrationSharedSecret" "registration-shared-secret" "s3AccessKeyId" "s3-access-key-id" "s3SecretAccessKey" "s3-secret-access-key" }}
{{- $variables := dict "databaseUrl" "DATABASE_URL" "keyboxMasterKey" "KEYBOX_MASTER_KEY" "registrationSharedSecret" "REGISTRATION_SHARED_SECRET" "s3AccessKeyId" "MEDIA_S3_ACCESS_KEY_ID" "s3SecretAccessKey" "MEDIA_S3_SECRET_ACCESS_KEY" }}
{{- range $name, $secret := .Values.secrets }}
{{- if or $secret.existingSecret $secret.value }}
- name: {{ $secret.existingSecret | default $made }}
  key: {{ $secret.key }}
  path: {{ get $paths $name }}
  variable: KEYSTEAD_{{ get $variables $name }}_FILE
{{- end }}
{{- end }}
{{- end }}

{{- /* The Secret that the chart makes of values, if any; empty otherwise. */}}
{{- define "keystead.madeSecrets" -}}
{{- range $name, $secret := .Values.secrets }}
{{- if $secret.value }}
{{ $secret.key }}: {{ $secret.value | b64enc | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- /* What all pods have in common. */}}
{{- define "keystead.pod" -}}
serviceAccountName: {{ include "keystead.serviceAccount" . }}
automountServiceAccountToken: false
# Kubernetes would set variables named KEYSTEAD_… for the Service, which the server would refuse as unknown settings.
enableServiceLinks: false
securityContext: {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{- /* The container of the server, or of one of its commands. */}}
{{- define "keystead.container" -}}
image: {{ include "keystead.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext: {{- toYaml .Values.securityContext | nindent 2 }}
envFrom:
  - configMapRef: {name: {{ include "keystead.fullname" . }}{{ .suffix }}}
{{- with .Values.extraEnv }}
env: {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  - {name: secrets, mountPath: /etc/keystead/secrets, readOnly: true}
  - {name: data, mountPath: /var/lib/keystead}
  {{- if .Values.media.persistence.enabled }}
  - {name: media, mountPath: /var/lib/keystead/media}
  {{- end }}
  {{- if .Values.tls.existingSecret }}
  - {name: tls, mountPath: /etc/keystead/tls, readOnly: true}
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "keystead.volumes" -}}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      {{- range include "keystead.secrets" . | fromYamlArray }}
      - secret:
          name: {{ .name }}{{ if hasSuffix "-secrets" .name }}{{ if eq .name (printf "%s-secrets" (include "keystead.fullname" $)) }}{{ $.suffix }}{{ end }}{{ end }}
          items: [{key: {{ .key }}, path: {{ .path }}}]
      {{- end }}
- name: data
  emptyDir: {sizeLimit: 64Mi}
{{- if .Values.media.persistence.enabled }}
- name: media
  persistentVolumeClaim: {claimName: {{ .Values.media.persistence.existingClaim | default (printf "%s-media" (include "keystead.fullname" .)) }}}
{{- end }}
{{- if .Values.tls.existingSecret }}
- name: tls
  secret: {secretName: {{ .Values.tls.existingSecret }}, defaultMode: 0440}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "keystead.egressToDns" -}}
- ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
  {{- with .Values.networkPolicy.dnsTo }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{- define "keystead.egressToDatabase" -}}
- ports:
    - {protocol: TCP, port: {{ .Values.networkPolicy.databasePort }}}
  {{- with .Values.networkPolicy.databaseTo }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{- define "keystead.egressToService" -}}
- ports:
    - {protocol: TCP, port: {{ .Values.service.port }}}
  to:
    - podSelector:
        matchLabels:
          {{- include "keystead.selector" . | nindent 10 }}
          app.kubernetes.io/component: server
{{- end }}

{{- /* The policy of a Job or of the test, which nobody has to reach: .component, .egress, and the .annotations of a hook. */}}
{{- define "keystead.policy" -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "keystead.fullname" . }}-{{ .component }}
  labels: {{- include "keystead.labels" . | nindent 4 }}
  {{- with .annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  podSelector:
    matchLabels:
      {{- include "keystead.selector" . | nindent 6 }}
      app.kubernetes.io/component: {{ .component }}
  policyTypes: [Ingress, Egress]
  egress:
    {{- include "keystead.egressToDns" . | nindent 4 }}
    {{- .egress | nindent 4 }}
{{- end }}
