"""The files of the dashboard, from `server/web`."""
