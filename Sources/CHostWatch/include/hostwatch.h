#include "hostwatch_protocol.h"
