package main

import (
	"os"
	"syscall"
)

var setConsoleMode = syscall.NewLazyDLL("kernel32.dll").NewProc("SetConsoleMode")

// obeysEscapes has a console obey escape sequences. One that is older than Windows 10 cannot.
func obeysEscapes(f *os.File) bool {
	const virtualTerminal = 4 // ENABLE_VIRTUAL_TERMINAL_PROCESSING
	var mode uint32
	if syscall.GetConsoleMode(syscall.Handle(f.Fd()), &mode) != nil {
		return false
	}
	if mode&virtualTerminal != 0 {
		return true
	}
	ok, _, _ := setConsoleMode.Call(f.Fd(), uintptr(mode|virtualTerminal))
	return ok != 0
}

// drawsUnicode: what obeys escape sequences here has the characters, whatever its locale.
func drawsUnicode(func(string) string) bool { return true }
