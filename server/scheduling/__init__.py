"""Who may use which device, and when: hours, priorities and the one decision made of them."""
