{{- /*
# Pods: what a server's and a rank's on another host have in common, and the server's container.
*/ -}}
{{- define "pagewire.image" -}}
image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{- define "pagewire.pod" -}}
automountServiceAccountToken: false
# A Service's variables would be read as settings of the same name.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.topologySpreadConstraints }}
topologySpreadConstraints: {{ toYaml . | nindent 2 }}
{{- end }}
volumes:
  - {name: tmp, emptyDir: {}}
  - name: cache
    {{- if .Values.cache.existingClaim }}
    persistentVolumeClaim: {claimName: {{ .Values.cache.existingClaim }}}
    {{- else }}
    emptyDir: {sizeLimit: {{ .Values.cache.size }}}
    {{- end }}
  - {name: shared-memory, emptyDir: {medium: Memory, sizeLimit: {{ .Values.sharedMemory }}}}
  - {name: settings, configMap: {name: {{ include "pagewire.name" . }}}}
{{- end }}

{{- define "pagewire.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: cache, mountPath: /var/cache/pagewire}
- {name: shared-memory, mountPath: /dev/shm}
- {name: settings, mountPath: /etc/pagewire/settings, readOnly: true}
{{- if .Values.curve.secret }}
- {name: curve, mountPath: /etc/pagewire/curve, readOnly: true}
{{- end }}
{{- end }}

{{- define "pagewire.containerSecurity" -}}
securityContext:
  readOnlyRootFilesystem: true
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
{{- end }}

{{- define "pagewire.resources" -}}
{{- $resources := deepCopy .resources }}
{{- if .gpus }}
{{- $_ := set $resources "limits" (merge (dict "nvidia.com/gpu" (.gpus | toString)) ($resources.limits | default dict)) }}
{{- end }}
resources: {{ toYaml $resources | nindent 2 }}
{{- end }}

{{- /* The environment of ranks over hosts: keys that are root's and the group's, which is ours alone. */ -}}
{{- define "pagewire.env" -}}
{{- if gt (int .Values.ranks.hosts) 1 }}
- {name: PAGEWIRE_DISTRIBUTED_ADDRESS, value: "$(LWS_LEADER_ADDRESS):29500"}
- {name: CREDENTIALS_DIRECTORY, value: /etc/pagewire/curve}
{{- end }}
{{- end }}

{{- define "pagewire.server" -}}
terminationGracePeriodSeconds: {{ add (int .Values.drain.preStopSeconds) (int .Values.drain.delaySeconds) (int .Values.drain.graceSeconds) 30 }}
{{ include "pagewire.pod" . }}
  {{- with .Values.curve.secret }}
  - {name: curve, secret: {secretName: {{ . }}, defaultMode: 0440}}
  {{- end }}
  {{- with .Values.auth.apiKeysSecret }}
  - {name: api-keys, secret: {secretName: {{ . }}, defaultMode: 0440}}
  {{- end }}
  {{- with .Values.auth.tenantLimitsConfigMap }}
  - {name: tenant-limits, configMap: {name: {{ . }}}}
  {{- end }}
  {{- with .Values.tls.secret }}
  - {name: tls, secret: {secretName: {{ . }}, defaultMode: 0440}}
  {{- end }}
  {{- with .Values.tls.clientCaSecret }}
  - {name: client-ca, secret: {secretName: {{ . }}, defaultMode: 0440}}
  {{- end }}
containers:
  - name: server
    {{- include "pagewire.image" . | nindent 4 }}
    args: [serve, --quiet, --config=/etc/pagewire/settings/pagewire.toml]
    {{- with include "pagewire.env" . | trim }}
    env: {{ . | nindent 6 }}
    {{- end }}
    ports:
      - {name: grpc, containerPort: 50051}
      - {name: health, containerPort: 50053}
      {{- if .Values.metrics.enabled }}
      - {name: metrics, containerPort: 9400}
      {{- end }}
      {{- if gt (int .Values.ranks.hosts) 1 }}
      - {name: workers, containerPort: 50055}
      - {name: distributed, containerPort: 29500}
      {{- end }}
    # Probes have no certificates and no TLS: health has a port of its own. No livenessProbe: a server that drains or
    # recovers is not serving and must not be killed for it; the supervisor ends what stands still.
    startupProbe:
      grpc: {port: 50053}
      periodSeconds: 5
      failureThreshold: 360
    readinessProbe:
      grpc: {port: 50053}
      periodSeconds: 2
      failureThreshold: 2
    lifecycle:
      # Balancers hear that the pod ends before the server does.
      preStop: {sleep: {seconds: {{ .Values.drain.preStopSeconds }}}}
    {{- include "pagewire.resources" (dict "resources" .Values.resources "gpus" (ternary .Values.ranks.perHost 0 (eq .Values.device "cuda"))) | nindent 4 }}
    {{- include "pagewire.containerSecurity" . | nindent 4 }}
    volumeMounts:
      {{- include "pagewire.mounts" . | nindent 6 }}
      {{- if .Values.auth.apiKeysSecret }}
      - {name: api-keys, mountPath: /etc/pagewire/keys, readOnly: true}
      {{- end }}
      {{- if .Values.auth.tenantLimitsConfigMap }}
      - {name: tenant-limits, mountPath: /etc/pagewire/limits, readOnly: true}
      {{- end }}
      {{- if .Values.tls.secret }}
      - {name: tls, mountPath: /etc/pagewire/tls, readOnly: true}
      {{- end }}
      {{- if .Values.tls.clientCaSecret }}
      - {name: client-ca, mountPath: /etc/pagewire/client-ca, readOnly: true}
      {{- end }}
{{- end }}
