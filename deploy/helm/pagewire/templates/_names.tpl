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
{{- /* Metrics make the server run with insecure, so what it would refuse itself is refused here. */}}
{{- if not $v.insecure }}
{{- if and $v.metrics.enabled (not $v.networkPolicy.enabled) }}{{ fail "metrics have no keys: metrics.enabled needs networkPolicy.enabled, or insecure where the network is closed by other means" }}{{ end }}
{{- range $name := list "kv_events" "kv_events_replay" }}
{{- if hasKey $v.settings $name }}{{ fail (printf "settings.%s needs insecure: KV events have no keys, and whoever reaches them reads prompts" $name) }}{{ end }}
{{- end }}
{{- if and (hasKey $v.settings "openai") (not $v.auth.apiKeysSecret) }}{{ fail "settings.openai needs auth.apiKeysSecret, or insecure" }}{{ end }}
{{- if and $v.envoy.enabled (not $v.auth.apiKeysSecret) }}{{ fail "envoy needs auth.apiKeysSecret, or insecure: it calls with its own certificate, whoever calls it" }}{{ end }}
{{- end }}
{{- if and $v.autoscaling.enabled (not $v.metrics.enabled) }}{{ fail "autoscaling needs metrics.enabled" }}{{ end }}
{{- if and $v.autoscaling.enabled $v.networkPolicy.enabled (not $v.networkPolicy.metricsFrom) }}{{ fail "autoscaling needs networkPolicy.metricsFrom, which lets Prometheus reach the metrics" }}{{ end }}
{{- if and $v.envoy.enabled $v.tls.secret (not $v.envoy.clientSecret) }}{{ fail "envoy in front of a server with TLS needs envoy.clientSecret" }}{{ end }}
{{- if and $v.gateway.enabled $v.tls.secret (not $v.envoy.enabled) }}{{ fail "gateway and tls.secret need envoy: a gateway speaks plaintext to the server" }}{{ end }}
{{- if and $v.gateway.enabled $v.gateway.inferencePool.enabled $v.envoy.enabled }}{{ fail "gateway.inferencePool and envoy both choose the replica: take one of them" }}{{ end }}
{{- if and $v.gateway.inferencePool.enabled (not $v.gateway.inferencePool.endpointPicker) }}{{ fail "gateway.inferencePool needs endpointPicker, the name of its Service" }}{{ end }}
{{- range $name := list "model" "device" "listen" "health_listen" "admin_listen" "metrics_listen" "tensor_parallel_size" "remote_workers" "worker_transport" "distributed_address" "curve_dir" "tls_certificate" "tls_key" "tls_client_ca" "api_keys_file" "tenant_limits_file" "drain_delay_s" "drain_grace_s" "insecure" }}
{{- if hasKey $v.settings $name }}{{ fail (printf "settings.%s is made from other values of the chart" $name) }}{{ end }}
{{- end }}
{{- end }}
