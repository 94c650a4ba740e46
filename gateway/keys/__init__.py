"""Who may call the gateway, as which tenant, and how much: API keys and the limits of each client."""
