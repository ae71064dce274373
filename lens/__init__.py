"""`triune lens`: questions to the inside of a model of any task, and their answers as tables, pictures and a page."""
