"""Speed against the published formulation: one command per question, each prints a table and writes JSON."""
