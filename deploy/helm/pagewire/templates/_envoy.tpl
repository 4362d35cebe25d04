{{- /*
# Envoy's own configuration.
*/ -}}
{{- define "pagewire.envoyConfig" -}}
admin:
  address: {socket_address: {address: 127.0.0.1, port_value: 9901}}
static_resources:
  listeners:
    - name: grpc
      address: {socket_address: {address: 0.0.0.0, port_value: 50051}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: grpc
                codec_type: HTTP2
                # A stream lasts as long as its answer does; the server ends those of slow readers.
                stream_idle_timeout: 0s
                route_config:
                  virtual_hosts:
                    - name: pagewire
                      domains: ["*"]
                      routes:
                        - match: {prefix: "/"}
                          route:
                            cluster: pagewire
                            timeout: 0s
                            # Only what never began is sent again: what began, the client resumes.
                            retry_policy: {retry_on: "connect-failure,refused-stream", num_retries: 2}
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
    - name: pagewire
      type: STRICT_DNS
      connect_timeout: 2s
      dns_refresh_rate: 2s
      # The servers bound themselves, and say so in words; Envoy's own bound is 1,024 requests.
      circuit_breakers:
        thresholds:
          - {max_connections: 1000000, max_pending_requests: 1000000, max_requests: 1000000, max_retries: 100}
      load_balancing_policy:
        policies:
          - typed_extension_config:
              {{- if eq .Values.envoy.policy "orca" }}
              name: envoy.load_balancing_policies.client_side_weighted_round_robin
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin
                blackout_period: 5s
                weight_expiration_period: 60s
                weight_update_period: 1s
              {{- else }}
              name: envoy.load_balancing_policies.least_request
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest
              {{- end }}
      typed_extension_protocol_options:
        envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
          "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
          explicit_http_config: {http2_protocol_options: {}}
      {{- if .Values.envoy.clientSecret }}
      transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
          common_tls_context:
            alpn_protocols: [h2]
            tls_certificates:
              - certificate_chain: {filename: /etc/pagewire/client/tls.crt}
                private_key: {filename: /etc/pagewire/client/tls.key}
            validation_context:
              trusted_ca: {filename: /etc/pagewire/client/ca.crt}
              match_typed_subject_alt_names:
                - san_type: DNS
                  matcher: {exact: {{ include "pagewire.name" . }}.{{ .Release.Namespace }}.svc}
      {{- end }}
      load_assignment:
        cluster_name: pagewire
        endpoints:
          - lb_endpoints:
              - endpoint:
                  address: {socket_address: {address: {{ include "pagewire.name" . }}-pods.{{ .Release.Namespace }}.svc, port_value: 50051}}
{{- end }}
