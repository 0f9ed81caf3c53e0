"""Which memories matter to which responses, to be looked at: in a terminal, on a page, as a picture."""
