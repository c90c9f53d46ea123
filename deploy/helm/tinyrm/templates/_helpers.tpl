{{- define "tinyrm.fullname" -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride }}
{{- else if contains "tinyrm" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ .Release.Name | trunc 43 | trimSuffix "-" }}-tinyrm
{{- end }}
{{- end }}

{{- define "tinyrm.selector" -}}
app.kubernetes.io/name: tinyrm
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tinyrm.labels" -}}
{{ include "tinyrm.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "tinyrm.image" -}}
{{- $tag := .image.tag | default .chart.AppVersion -}}
{{ .image.repository }}{{ if .image.digest }}@{{ .image.digest }}{{ else }}:{{ $tag }}{{ end }}
{{- end }}

{{- /* The text of a setting. Numbers of a file of values are floats, whose text would be 1.048576e+06, and YAML reads the
words on and off as booleans. */}}
{{- define "tinyrm.text" -}}
{{- if kindIs "bool" . }}{{ ternary "on" "off" . }}
{{- else if not (kindIs "float64" .) }}{{ . }}
{{- else if eq . (floor .) }}{{ int64 . }}
{{- else }}{{ . }}
{{- end }}
{{- end }}

{{- /* Every place of a model, in one text. */}}
{{- define "tinyrm.places" -}}
{{ .model.source }},{{ .settings.TINYRM_SPECIALISTS }},{{ .settings.TINYRM_MORE_MODELS }}
{{- end }}

{{- /* Not empty if a model comes over the network. */}}
{{- define "tinyrm.fetches" -}}
{{- if regexMatch "hf://|https?://|@" (include "tinyrm.places" .) }}yes{{ end }}
{{- end }}

{{- /* The values of one track as JSON: the canary's where it has some. */}}
{{- define "tinyrm.track" -}}
{{- $own := ternary .root.Values.canary dict (eq .track "canary") -}}
{{- $values := dict -}}
{{- range $key := list "image" "model" "settings" "resources" -}}
{{- $_ := set $values $key (mustMergeOverwrite (deepCopy (index $.root.Values $key)) (deepCopy (index $own $key | default dict))) -}}
{{- end -}}
{{- /* A tag of its own is another image, which a digest of the stable one would hide. */ -}}
{{- with $own.image | default dict }}{{ if and .tag (not .digest) }}{{ $_ := set $values.image "digest" "" }}{{ end }}{{ end -}}
{{- /* A volume has one source: another one takes its place. */ -}}
{{- with ($own.model | default dict).volume }}{{ $_ := set $values.model "volume" . }}{{ end -}}
{{- with (($own.model | default dict).cache | default dict).volume }}{{ $_ := set $values.model.cache "volume" . }}{{ end -}}
{{ $values | toJson }}
{{- end }}

{{- /* Query of Prometheus over the replicas of the stable Deployment; the canary's pods have one more part in their names. */}}
{{- define "tinyrm.pods" -}}
namespace="{{ .Release.Namespace }}",pod=~"{{ include "tinyrm.fullname" . }}-[a-z0-9]+-[a-z0-9]+"
{{- end }}

{{- define "tinyrm.scaling" -}}
scaleUp:
  stabilizationWindowSeconds: 0
  policies:
    - type: Percent
      value: 100
      periodSeconds: 30
scaleDown:
  stabilizationWindowSeconds: 300
  policies:
    - type: Pods
      value: 1
      periodSeconds: 60
{{- end }}

{{- /* What a schema cannot check: values that contradict each other. */}}
{{- define "tinyrm.check" -}}
{{- $name := include "tinyrm.fullname" . }}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) }}
{{- fail (printf "%s cannot be the name of a Service (lower-case letters, digits and -, a letter first); set fullnameOverride" $name) }}
{{- end }}
{{- with .Values -}}
{{- if gt (int .autoscaling.minReplicas) (int .autoscaling.maxReplicas) }}
{{- fail "autoscaling.minReplicas is greater than autoscaling.maxReplicas" }}
{{- end }}
{{- if and .apiKeys.secret .monitoring.enabled (not .apiKeys.metricsSecret) }}
{{- fail "apiKeys.metricsSecret is empty: with apiKeys.secret, Prometheus needs a key of the scope `metrics`; or set monitoring.enabled to false" }}
{{- end }}
{{- if and .settings.TINYRM_OTLP_ENDPOINT .networkPolicy.enabled (not .networkPolicy.egress) }}
{{- fail "networkPolicy.egress is empty: settings.TINYRM_OTLP_ENDPOINT needs a rule that allows the connection to its collector" }}
{{- end }}
{{- range .extraEnv }}
{{- if hasPrefix "TINYRM_" .name }}
{{- fail (printf "extraEnv: %s is a setting; put it into settings (model, apiKeys.secret and service.port set some themselves)" .name) }}
{{- end }}
{{- end }}
{{- if and .route.enabled (not .route.parentRefs) }}
{{- fail "route.parentRefs is empty: name the Gateway, as in [{name: GATEWAY, namespace: NAMESPACE}]" }}
{{- end }}
{{- end }}
{{- range $track := list "stable" "canary" }}
{{- $values := include "tinyrm.track" (dict "root" $ "track" $track) | fromJson }}
{{- range $place := splitList "," (include "tinyrm.places" $values) }}
{{- $place = trim $place }}
{{- if and (regexMatch "(^|=)https?://" $place) (not (regexMatch "#sha256=[0-9a-f]{64}$" $place)) }}
{{- fail (printf "%s: the address of a bundle must end with #sha256= and the 64 digits of its hash" $place) }}
{{- end }}
{{- if and (regexMatch "(^|=)hf://" $place) (not (regexMatch "hf://[^/@]+/[^/@]+@[0-9a-f]{40}$" $place)) }}
{{- fail (printf "%s: a model on the hub is named as hf://ORG/NAME@COMMIT, with all 40 digits of the commit" $place) }}
{{- end }}
{{- if and (regexMatch "(^|=)/models(/|$)" $place) (not $values.model.volume) }}
{{- fail (printf "%s is in /models, but model.volume is empty; set it to the source of a volume, such as {persistentVolumeClaim: {claimName: NAME}}" $place) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
