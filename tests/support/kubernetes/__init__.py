"""A Kubernetes control plane on loopback, without a registry or a container engine."""
