"""What a run would cost, before anything is trained or even downloaded."""
