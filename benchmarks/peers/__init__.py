"""The contestants. Peers are imported from where the user has them; none of their code is here."""
