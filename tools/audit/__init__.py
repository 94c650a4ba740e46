"""`make audit`: licences, bills of materials and known vulnerabilities of what the images install."""
