"""Plans: from losses to what each table holds and each worker does."""
