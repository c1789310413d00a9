"""Whom does a change hurt? Paired audits over many dimensions, in plain words, with gates and sign-off."""
