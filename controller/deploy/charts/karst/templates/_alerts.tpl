{{- define "karst.alerts" -}}
groups:
  - name: karst
    rules:
      - alert: KarstControllerLost
        expr: 'karst_xds_connected == 0'
        for: 5m
        labels:
          severity: warning
        annotations:
          summary: "An agent or proxy has no stream to the controller"
          description: "It goes on with its last good state, and changes do not reach it. Is the controller up, and port 15012 reachable? The log of the agent or proxy has the reason."
      - alert: KarstStateIncomplete
        expr: 'karst_xds_synced == 0'
        for: 5m
        labels:
          severity: critical
        annotations:
          summary: "An agent or proxy has never received a complete state"
          description: "Connections of the pods of its node, or requests through it, are refused until it has."
      - alert: KarstResourceRejected
        expr: 'sum by (type) (increase(karst_controller_xds_nacks_total[15m])) > 0 or sum by (type) (karst_controller_xds_nacks_total unless karst_controller_xds_nacks_total offset 15m) > 0'
        for: 0m
        labels:
          severity: warning
        annotations:
          summary: "Agents or proxies reject what the controller sends"
          description: "The last good version stays in force where it was rejected; what a policy is for that a proxy rejects is refused. The log of the controller names resource and reason (xds_rejected); where a proxy rejects a route or policy, so does the condition Programmed of that object."
      - alert: KarstPropagationSlow
        expr: 'histogram_quantile(0.99, sum by (le, type) (rate(karst_controller_xds_propagation_seconds_bucket[10m]))) > 5'
        for: 10m
        labels:
          severity: warning
        annotations:
          summary: "Changes take more than 5 s until they are in force"
          description: "One change in a hundred or more. Is the controller or are nodes short of CPU?"
      - alert: KarstMapNearlyFull
        expr: 'karst_bpf_map_entries{map=~"PODS|POD_ADDRESSES|LISTENERS"} / karst_bpf_map_max_entries{map=~"PODS|POD_ADDRESSES|LISTENERS"} > 0.8'
        for: 5m
        labels:
          severity: warning
        annotations:
          summary: "An eBPF map is more than 80 % full"
          description: "Pods cannot be enrolled any more when it is full (bpf_pods_full). Raise agent.maxPods."
      - alert: KarstCertificateNearExpiry
        expr: '(karst_certificate_not_after_timestamp_seconds - time()) / (karst_certificate_not_after_timestamp_seconds - karst_certificate_not_before_timestamp_seconds) < 0.25'
        for: 5m
        labels:
          severity: warning
        annotations:
          summary: "A certificate has less than a quarter of its lifetime left"
          description: "It should have been renewed by now. Connections of that identity are refused when it ends. The log of the agent or proxy says why renewal fails."
      - alert: KarstCertificateMissing
        expr: 'sum by (instance) (karst_certificates{state="unavailable"}) > 0'
        for: 5m
        labels:
          severity: critical
        annotations:
          summary: "An identity has no valid certificate"
          description: "Connections of its pods are refused."
      - alert: KarstAgentRefuses
        expr: 'sum by (instance, reason, direction) (rate(karst_refusals_total{reason!~"policy_denied|waypoint_required|egress_denied|self_call|connect_bad_authority"}[5m])) > 0.1'
        for: 10m
        labels:
          severity: warning
        annotations:
          summary: "An agent refuses connections, and no policy says so"
          description: "The reason is the label; karst explain finds the cause for two pods."
      - alert: KarstWaypointRefuses
        expr: 'sum by (instance, reason) (rate(karst_waypoint_refusals_total{reason!~"policy_denied|custom_denied|jwt_.*|no_route|redirect|cors_preflight|client_gone|idle_timeout|first_bytes_timeout|gateway_.*|egress_denied"}[5m])) > 0.1'
        for: 10m
        labels:
          severity: warning
        annotations:
          summary: "A waypoint or gateway refuses connections or requests, and no policy says so"
          description: "The reason is the label."
      - alert: KarstHandshakesFail
        expr: 'sum by (instance, side) (rate(karst_tunnel_handshakes_total{result!="ok"}[10m])) / sum by (instance, side) (rate(karst_tunnel_handshakes_total[10m])) > 0.1'
        for: 10m
        labels:
          severity: warning
        annotations:
          summary: "More than a tenth of the TLS handshakes of tunnels fail"
          description: "The label result of karst_tunnel_handshakes_total has the reasons."
      - alert: KarstWorkerOutOfDescriptors
        expr: 'increase(karst_accept_failures_total[10m]) > 0'
        for: 0m
        labels:
          severity: critical
        annotations:
          summary: "Connections were not accepted for lack of file descriptors or memory"
          description: "Raise the limit of open files of the container runtime, or the memory limit."
      - alert: KarstAccessLogDropped
        expr: 'increase(karst_access_log_dropped_total[10m]) > 0'
        for: 0m
        labels:
          severity: warning
        annotations:
          summary: "Records of the access log were dropped"
          description: "Whoever reads the output of the container is slower than what is written. Filter or sample the access log, or turn it off."
      - alert: KarstSeriesFolded
        expr: 'sum by (instance) (increase(karst_tcp_series_folded_total[10m])) > 0 or sum by (instance) (increase(karst_waypoint_series_folded_total[10m])) > 0'
        for: 0m
        labels:
          severity: warning
        annotations:
          summary: "Metrics are counted without their client because there are too many combinations of labels"
          description: "Sums are right, but single pairs of workloads are missing."
      - alert: KarstPodsNotEnrolled
        expr: 'sum by (instance) (karst_pods{state="wanted"}) - sum by (instance) (karst_pods{state="enrolled"}) > 0'
        for: 5m
        labels:
          severity: warning
        annotations:
          summary: "Pods that belong to the mesh are not enrolled"
          description: "Their connections are not protected, or are refused. karst inspect pod and the log of the agent say why."
      - alert: KarstNoLeader
        expr: 'sum(karst_controller_leader) == 0'
        for: 5m
        labels:
          severity: critical
        annotations:
          summary: "No replica of the controller writes"
          description: "Statuses, proxies of Gateways and annotations are not brought up to date."
      - alert: KarstWatchBroken
        expr: 'karst_controller_watch_synced == 0'
        for: 10m
        labels:
          severity: warning
        annotations:
          summary: "The controller does not follow a kind of object"
          description: "What changes of it has no effect. The log of the controller says why; the role may lack a permission."
      - alert: KarstAuthorityRestartNeeded
        expr: 'max(karst_controller_ca_restart_needed) == 1'
        for: 15m
        labels:
          severity: warning
        annotations:
          summary: "The Secret of the authority is no longer what the controller uses"
          description: "Restart the controllers, see the section on certificates in the documentation of the charts."
      - alert: KarstGatewayPortFailed
        expr: 'karst_waypoint_ports_failed > 0'
        for: 5m
        labels:
          severity: critical
        annotations:
          summary: "A gateway cannot open a port of its configuration"
          description: "Something else has it, or it may not be opened. /v1/ports of its admin port says which."
{{- end }}
