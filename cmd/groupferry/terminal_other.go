//go:build !windows

package main

import "os"

// obeysEscapes: all terminals do, but for a dumb one.
func obeysEscapes(*os.File) bool { return true }

func drawsUnicode(getenv func(string) string) bool { return isUTF8(getenv) }
