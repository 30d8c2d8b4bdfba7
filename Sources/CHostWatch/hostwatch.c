#include "hostwatch.h"
