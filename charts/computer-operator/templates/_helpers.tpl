{{/* The full name. At most 40 characters, so that every suffix fits. It begins with a letter because the names of Services require it. */}}
{{- define "co.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := .Values.fullnameOverride | default (ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name)) -}}
{{- $full = $full | replace "." "-" | trunc 40 | trimSuffix "-" -}}
{{- if not (regexMatch "^[a-z]" $full) -}}
{{- fail (printf "release name %q begins with a digit, but the names of Services must begin with a letter. Choose another release name or set fullnameOverride" .Release.Name) -}}
{{- end -}}
{{- $full -}}
{{- end }}

{{- define "co.selector" -}}
app.kubernetes.io/name: computer-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "co.labels" -}}
{{ include "co.selector" . }}
app.kubernetes.io/part-of: computer-operator
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* The labels of archive pods. The operator creates these pods, so they carry no labels of the release or the chart. */}}
{{- define "co.archiveSelector" -}}
app.kubernetes.io/managed-by: computer-operator
computer-operator.dev/component: archive
{{- end }}

{{/* An image reference from values: registry (or the global one), repository, digest or tag. */}}
{{- define "co.imageOf" -}}
{{- $registry := .global.imageRegistry | default .image.registry -}}
{{- $path := ternary (printf "%s/%s" $registry .image.repository) .image.repository (ne $registry "") -}}
{{- if .image.digest }}{{ printf "%s@%s" $path .image.digest }}{{ else }}{{ printf "%s:%s" $path (.image.tag | default .tag) }}{{ end -}}
{{- end }}

{{- define "co.image" -}}
{{- include "co.imageOf" (dict "image" .Values.image "global" .Values.global "tag" .Chart.AppVersion) -}}
{{- end }}

{{- define "co.account" -}}
{{- printf "system:serviceaccount:%s:%s" .Release.Namespace (include "co.fullname" .) -}}
{{- end }}

{{- define "co.tlsSecret" -}}
{{- .Values.api.tls.secretName | default (printf "%s-api-tls" (include "co.fullname" .)) -}}
{{- end }}

{{- define "co.storeClaim" -}}
{{- .Values.archive.local.existingClaim | default (printf "%s-store" (include "co.fullname" .)) -}}
{{- end }}

{{/* Where the runbooks of the alerts are, with a slash at the end. Empty: nowhere, because no HTTP API serves them. */}}
{{- define "co.runbooks" -}}
{{- if .Values.metrics.prometheusRule.runbookBaseUrl -}}
{{- printf "%s/" (trimSuffix "/" .Values.metrics.prometheusRule.runbookBaseUrl) -}}
{{- else if and .Values.api.enabled .Values.api.ingress.enabled -}}
{{- printf "%s://%s/docs/runbooks/" (ternary "https" "http" (gt (len .Values.api.ingress.tls) 0)) (first .Values.api.ingress.hosts) -}}
{{- else if .Values.api.enabled -}}
{{- printf "%s://%s-api.%s.svc:%v/docs/runbooks/" (ternary "http" "https" (eq .Values.api.tls.mode "None")) (include "co.fullname" .) .Release.Namespace .Values.api.service.port -}}
{{- end -}}
{{- end }}

{{/* Where machines reach the HTTP API. Empty: there is none. The values of an older version have no `api.url`: `helm upgrade --reuse-values`. */}}
{{- define "co.apiUrl" -}}
{{- if .Values.api.url -}}
{{- .Values.api.url -}}
{{- else if .Values.api.enabled -}}
{{- printf "%s://%s-api.%s.svc:%v" (ternary "http" "https" (eq .Values.api.tls.mode "None")) (include "co.fullname" .) .Release.Namespace .Values.api.service.port -}}
{{- end -}}
{{- end }}

{{/* The rules of one role, generated from the code. */}}
{{- define "co.rules" -}}
{{- $all := .context.Files.Get "files/rbac.yaml" | fromYaml -}}
{{- index $all .group .role | toYaml -}}
{{- end }}

{{/* Complies with Pod Security `restricted`; used for every pod of the chart. */}}
{{- define "co.podSecurity" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{- define "co.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{/* Scheduling of the pods of `component`, from its `values`. */}}
{{- define "co.placement" -}}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $tolerations := .values.tolerations -}}
{{- /* The values of an older version do not contain `tolerateCordon`: `helm upgrade --reuse-values`. Several replicas do not need it: another one
works on another node, and the spread would prefer the node that is being drained. */ -}}
{{- if and (eq .component "controller") (eq (int .values.replicas) 1) (ne (toString .values.tolerateCordon) "false") -}}
{{- $tolerations = append $tolerations (dict "key" "node.kubernetes.io/unschedulable" "operator" "Exists" "effect" "NoSchedule") -}}
{{- end }}
{{- with $tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml .values.topologySpreadConstraints | nindent 2 }}
{{- else if gt (int .values.replicas) 1 }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "co.selector" .context | nindent 8 }}
        app.kubernetes.io/component: {{ .component }}
{{- end }}
{{- end }}

{{/* Annotations of a hook: event and order. Its objects are deleted on success; a failed Job is kept for inspection. */}}
{{- define "co.hook" -}}
helm.sh/hook: {{ .on }}
helm.sh/hook-weight: {{ .weight | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{/* The pod of a hook's Job. */}}
{{- define "co.hookPod" -}}
metadata:
  labels:
    {{- include "co.selector" .context | nindent 4 }}
    app.kubernetes.io/component: hook
spec:
  {{- include "co.hookPodSpec" . | nindent 2 }}
{{- end }}

{{- define "co.hookPodSpec" -}}
restartPolicy: Never
serviceAccountName: {{ .account }}
automountServiceAccountToken: true
enableServiceLinks: false
{{- include "co.podSecurity" . | nindent 0 }}
{{- with .context.Values.controller.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .context.Values.controller.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
containers:
  - name: hook
    image: {{ include "co.image" .context }}
    imagePullPolicy: {{ .context.Values.image.pullPolicy }}
    args: {{ toJson .args }}
    terminationMessagePolicy: FallbackToLogsOnError
    {{- include "co.containerSecurity" . | nindent 4 }}
    resources:
      requests: {cpu: 10m, memory: 32Mi}
      limits: {memory: 128Mi}
    {{- if .configMap }}
    volumeMounts:
      - {name: config, mountPath: /config, readOnly: true}
volumes:
  - name: config
    configMap: {name: {{ .configMap }}}
    {{- end }}
{{- end }}

{{/* The URL of the archive store: `ARCHIVE_STORE` in controller/deployment.yaml, parsed in src/runtime/config.rs. It never contains credentials. */}}
{{- define "co.storeUrl" -}}
{{- if eq .Values.archive.type "Local" -}}
file:///var/lib/computer-operator/store
{{- else -}}
{{- $s3 := .Values.archive.s3 -}}
{{- $query := list -}}
{{- with $s3.region }}{{ $query = append $query (printf "region=%s" .) }}{{ end -}}
{{- with $s3.endpoint }}{{ $query = append $query (printf "endpoint=%s" .) }}{{ end -}}
{{- if $s3.allowHttp }}{{ $query = append $query "allow_http=true" }}{{ end -}}
{{- /* The values of an older version have no `ca`: `helm upgrade --reuse-values`. */ -}}
{{- $ca := $s3.ca | default dict -}}
{{- if or $ca.secret $ca.configMap }}{{ $query = append $query "ca_file=/etc/computer-operator/store-ca/ca.crt" }}{{ end -}}
{{- if $s3.credentialsSecret }}{{ $query = append $query "credentials_folder=/etc/computer-operator/store-credentials" }}{{ end -}}
s3://{{ $s3.bucket }}{{ with $s3.prefix }}/{{ trimAll "/" . }}{{ end }}{{ if $query }}?{{ join "&" $query }}{{ end }}
{{- end -}}
{{- end }}

{{/* What the operator's pod mounts for the store, as a JSON object with a list of mounts and one of volumes. */}}
{{- define "co.storeMounts" -}}
{{- $mounts := list -}}
{{- $volumes := list -}}
{{- $s3 := .Values.archive.s3 -}}
{{- if eq .Values.archive.type "Local" -}}
{{- $mounts = append $mounts (dict "name" "store" "mountPath" "/var/lib/computer-operator") -}}
{{- $volumes = append $volumes (dict "name" "store" "persistentVolumeClaim" (dict "claimName" (include "co.storeClaim" .))) -}}
{{- end -}}
{{- with $s3.credentialsSecret -}}
{{- $mounts = append $mounts (dict "name" "store-credentials" "mountPath" "/etc/computer-operator/store-credentials" "readOnly" true) -}}
{{- $volumes = append $volumes (dict "name" "store-credentials" "secret" (dict "secretName" .)) -}}
{{- end -}}
{{- $ca := $s3.ca | default dict -}}
{{- $items := list (dict "key" ($ca.key | default "ca.crt") "path" "ca.crt") -}}
{{- if or $ca.secret $ca.configMap -}}
{{- $mounts = append $mounts (dict "name" "store-ca" "mountPath" "/etc/computer-operator/store-ca" "readOnly" true) -}}
{{- if $ca.secret -}}
{{- $volumes = append $volumes (dict "name" "store-ca" "secret" (dict "secretName" $ca.secret "items" $items)) -}}
{{- else -}}
{{- $volumes = append $volumes (dict "name" "store-ca" "configMap" (dict "name" $ca.configMap "items" $items)) -}}
{{- end -}}
{{- end -}}
{{- dict "mounts" $mounts "volumes" $volumes | toJson -}}
{{- end }}

{{/* The port of the S3 store: that of its endpoint, or the default port of the scheme. */}}
{{- define "co.storePort" -}}
{{- $url := urlParse (.Values.archive.s3.endpoint | default "https://") -}}
{{- regexFind "[0-9]+$" (regexFind ":[0-9]+$" $url.host) | default (ternary "80" "443" (eq $url.scheme "http")) -}}
{{- end }}

{{/* The ComputerClass that the CRD hook applies. */}}
{{- define "co.defaultClass" -}}
{{- $class := .Values.defaultClass -}}
{{- $container := dict "name" "machine" "image" (include "co.imageOf" (dict "image" $class.image "global" .Values.global "tag" "latest")) "resources" $class.resources -}}
{{- with $class.command }}{{ $_ := set $container "command" . }}{{ end -}}
{{- $storage := dict "size" $class.storage.size -}}
{{- with $class.storage.storageClassName }}{{ $_ := set $storage "storageClassName" . }}{{ end -}}
{{- $template := dict "spec" (dict "containers" (list $container)) -}}
{{- /* Set here as well: with `--reuse-values` the values are those of an older chart, which do not contain it. */ -}}
{{- $archive := merge (deepCopy ($class.spec.archive | default dict)) (dict "unreadableFiles" "Block") -}}
{{- $spec := merge (dict "archive" $archive) (deepCopy $class.spec) (dict "description" $class.description "storage" $storage) -}}
{{- if not $spec.podTemplate }}{{ $_ := set $spec "podTemplate" $template }}{{ end -}}
apiVersion: computer-operator.dev/v1alpha1
kind: ComputerClass
metadata:
  name: {{ $class.name }}
  labels:
    {{- include "co.labels" . | nindent 4 }}
  annotations:
    computer-operator.dev/is-default-class: {{ $class.isDefault | quote }}
spec:
  {{- toYaml $spec | nindent 2 }}
{{- end }}

{{/* The ServiceAccount of a hook with a ClusterRole of generated rules: `name`, `on` and `role`. It exists only while the hook runs. */}}
{{- define "co.hookAccount" -}}
{{- $context := .context -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ .name }}
  namespace: {{ .context.Release.Namespace }}
  labels:
    {{- include "co.labels" .context | nindent 4 }}
  annotations:
    {{- include "co.hook" (dict "on" .on "weight" -10) | nindent 4 }}
automountServiceAccountToken: false
{{- with .context.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: {{ .name }}
  labels:
    {{- include "co.labels" .context | nindent 4 }}
  annotations:
    {{- include "co.hook" (dict "on" .on "weight" -10) | nindent 4 }}
rules:
  {{- include "co.rules" (dict "context" .context "group" "hooks" "role" .role) | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ .name }}
  labels:
    {{- include "co.labels" .context | nindent 4 }}
  annotations:
    {{- include "co.hook" (dict "on" .on "weight" -10) | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ .name }}
subjects:
  - kind: ServiceAccount
    name: {{ .name }}
    namespace: {{ .context.Release.Namespace }}
{{- end }}
