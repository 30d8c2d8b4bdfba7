print("hostwatchd")
