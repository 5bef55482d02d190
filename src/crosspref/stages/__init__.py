"""The steps of the flow, one file each: records in, records out."""
