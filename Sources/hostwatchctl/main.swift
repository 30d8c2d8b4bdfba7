print("hostwatchctl")
