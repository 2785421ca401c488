"""Carriers: parcels are booked with them, and they tell where those are."""
