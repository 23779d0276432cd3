"""The engine beside its peers, a hand-written best and the bare loop, each case in one run; see README.md here."""
