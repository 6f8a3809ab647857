"""A cluster of real parts on one machine: no container runtime, no image, no privileges beyond a network namespace.

etcd, kube-apiserver, kube-controller-manager, kube-scheduler, CoreDNS and Prometheus run as processes; a node agent
plays the kubelet and starts every pod's containers as processes in namespaces of their own. `testbed.bed.Bed` is the
entry point; this package file imports nothing because the container launcher pays for whatever it imports.
"""
