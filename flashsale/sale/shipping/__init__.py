"""How a parcel gets there: lanes (carrier and route), their tariffs, cut-offs, holidays and promises."""
