"""How the pocket model and the demo scenes are made; not part of the installed package."""
