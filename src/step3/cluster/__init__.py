"""Where many instances become one system: topology, launch, registry with leases, routing, recovery."""
