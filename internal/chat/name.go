package chat

import (
	"strings"
	"unicode"

	"golang.org/x/text/unicode/norm"
)

// FoldName returns what group names that differ in case or Unicode form only have in common. No document says whether
// the API tells such names apart.
func FoldName(name string) string {
	folded := strings.Map(func(r rune) rune {
		least := r
		for next := unicode.SimpleFold(r); next != r; next = unicode.SimpleFold(next) {
			least = min(least, next)
		}
		return least
	}, norm.NFC.String(name))
	return norm.NFC.String(folded)
}
