"""The extras: commands that some users need and others never open.

Nothing in the core imports them. `lesionseg.extra` finds an extra when its command is used, and a
missing one is an error only then. An extra imports the public names of the packages, never from
their modules, and no other extra.
"""
