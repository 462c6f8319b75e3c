-- Which fields of a body were wrong, and how much the people of the pictures look like their photos.

ALTER TABLE jobs ADD COLUMN error_fields TEXT NOT NULL DEFAULT '[]'; -- JSON
ALTER TABLE jobs ADD COLUMN similarities TEXT NOT NULL DEFAULT '[]'; -- JSON
