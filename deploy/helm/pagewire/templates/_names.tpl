{{- /*
# Names and labels, and what values must agree on.
*/ -}}
{{- define "pagewire.name" -}}
{{- if contains "pagewire" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-pagewire" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "pagewire.selector" -}}
app.kubernetes.io/name: pagewire
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "pagewire.labels" -}}
{{ include "pagewire.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "pagewire.check" -}}
{{- $v := .Values }}
{{- $hosts := int $v.ranks.hosts }}
{{- if and (not $v.auth.apiKeysSecret) (not $v.tls.clientCaSecret) (not $v.insecure) }}
{{- fail "nothing says who may call: set auth.apiKeysSecret, or tls.clientCaSecret, or insecure where the network is closed by other means" }}
{{- end }}
{{- if and $v.tls.clientCaSecret (not $v.tls.secret) }}{{ fail "tls.clientCaSecret needs tls.secret" }}{{ end }}
{{- if and (gt $hosts 1) (not $v.curve.secret) }}{{ fail "ranks.hosts > 1 needs curve.secret, the keys of the connection between hosts" }}{{ end }}
{{- if and $v.autoscaling.enabled (not $v.metrics.enabled) }}{{ fail "autoscaling needs metrics.enabled" }}{{ end }}
{{- if and $v.envoy.enabled $v.tls.secret (not $v.envoy.clientSecret) }}{{ fail "envoy in front of a server with TLS needs envoy.clientSecret" }}{{ end }}
{{- if and $v.gateway.inferencePool.enabled (not $v.gateway.inferencePool.endpointPicker) }}{{ fail "gateway.inferencePool needs endpointPicker, the name of its Service" }}{{ end }}
{{- range $name := list "model" "device" "listen" "health_listen" "admin_listen" "metrics_listen" "tensor_parallel_size" "remote_workers" "worker_transport" "distributed_address" "curve_dir" "tls_certificate" "tls_key" "tls_client_ca" "api_keys_file" "tenant_limits_file" "drain_delay_s" "drain_grace_s" "insecure" }}
{{- if hasKey $v.settings $name }}{{ fail (printf "settings.%s is made from other values of the chart" $name) }}{{ end }}
{{- end }}
{{- end }}
