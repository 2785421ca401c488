"""Who knows whether a document's number and a name are one person's."""
