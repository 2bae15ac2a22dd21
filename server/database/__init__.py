"""SQLite: engine, tables, migrations, backups."""
