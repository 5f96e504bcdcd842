"""The parts of an update that Copier lacks: a three-way merge of edited files, and migrations."""
