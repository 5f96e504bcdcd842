"""What an update does to a project beyond Copier: a true three-way merge of edited files, and migrations."""
