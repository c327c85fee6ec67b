//go:build !linux && !darwin

package app

// freeSpace is not known here.
var freeSpace = func(string) (free int64, known bool) { return 0, false }
