{{- define "servingplan.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-{{ .Chart.Name }}{{ end }}
{{- end }}

{{- define "servingplan.controller" -}}
{{ include "servingplan.fullname" . | trunc 52 | trimSuffix "-" }}-controller
{{- end }}

{{- define "servingplan.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "servingplan.controller" .) .Values.serviceAccount.name }}
{{- else }}{{ default "default" .Values.serviceAccount.name }}{{ end }}
{{- end }}

{{- define "servingplan.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: controller
{{- end }}

{{- define "servingplan.labels" -}}
{{ include "servingplan.selector" . }}
app.kubernetes.io/part-of: {{ .Chart.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "servingplan.image" -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end }}

{{/*
What the operator does inside a namespace that holds plans. Server-side apply is a patch, and a create where the object is
new. It never writes a plan: an update of plans/finalizers is what the API server asks of whoever sets an owner reference
that blocks the owner's deletion.
*/}}
{{- define "servingplan.namespacedRules" -}}
- apiGroups: [servingplan.io]
  resources: [modelservingplans]
  verbs: [list, watch]
- apiGroups: [servingplan.io]
  resources: [modelservingplans/status]
  verbs: [patch]
- apiGroups: [servingplan.io]
  resources: [modelservingplans/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [list, create, patch, delete]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [list, create, patch, delete]
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [list, create, patch, delete]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [rolebindings]
  verbs: [list, create, patch, delete]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [clusterroles]
  resourceNames: [{{ include "servingplan.pickerRole" . }}]
  verbs: [bind]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, patch]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- end }}

{{/*
The ClusterRole of the pickers. Plans' namespaces bind it; it is the only role that the operator may bind, so the operator can
give nobody a right that is not in here. Releases of one name in two namespaces must not meet.
*/}}
{{- define "servingplan.pickerRole" -}}
{{ printf "%s-%s" .Release.Namespace (include "servingplan.fullname" .) }}-picker
{{- end }}

{{/* What the operator reads of the cluster: how many accelerators there are. */}}
{{- define "servingplan.clusterRules" -}}
- apiGroups: [""]
  resources: [nodes]
  verbs: [list, watch]
{{- end }}

{{/*
The Lease by which one of several operators leads. A create cannot be granted for one name alone.
*/}}
{{- define "servingplan.leaseRules" -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ include "servingplan.controller" . }}]
  verbs: [get, update]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
{{- end }}

{{/* Folder of the Secret for Prometheus, and the keys of it that are used. */}}
{{- define "servingplan.prometheusFolder" -}}/etc/servingplan/prometheus{{- end }}

{{- define "servingplan.prometheusKeys" -}}
{{- $auth := .Values.prometheus.auth }}
{{- if eq $auth.method "basic" }}username password{{ else if eq $auth.method "bearer" }}token{{ end }}{{ if $auth.ca }} ca.crt{{ end }}
{{- end }}
