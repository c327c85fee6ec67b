// Package redact makes texts fit to be shown and kept: without the login of a URL, without a UserSig, and without what a
// terminal would take for an instruction.
//
// What is masked is masked to the last sign that could belong to it: of a text that can be read in two ways, the one that
// shows less counts.
package redact

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

const (
	login  = "***"      // stands where user, password or token of a URL were
	secret = "(secret)" // stands where a UserSig was
)

// A Server is an entry of a list of NATS URLs.
type Server struct {
	URL   url.URL // without anything but scheme and host
	User  string  // the user, if there is one with a password
	Login bool    // there was a user, a password or a token
}

// The schemes of a NATS URL.
var schemes = []string{"nats", "tls", "ws", "wss"}

// errServers repeats nothing of the text: a password can be what makes it unreadable.
var errServers = errors.New("want nats://host:port, or several of them separated by commas, those with a user first; " +
	"in a password, a comma is written as %2C, a slash as %2F, and @ as %40")

// Servers takes a list of NATS URLs apart. Its error holds nothing of the list.
//
// The connection cuts a password in two where it has a comma, and so does this: what is left of it would look like a
// host. So an entry with a user may not come after one without. A password with a comma and an @ cannot be told from two
// entries.
func Servers(list string) ([]Server, error) {
	var all []Server
	for s := range strings.SplitSeq(list, ",") {
		s = strings.TrimSpace(s)
		if !strings.Contains(s, "://") {
			s = "nats://" + s
		}
		at := strings.LastIndex(s, "@")
		u, err := url.Parse(s)
		if err != nil || u.Hostname() == "" || !slices.Contains(schemes, u.Scheme) ||
			at >= 0 && (len(all) > 0 && !all[len(all)-1].Login || !strings.HasPrefix(s[at+1:], u.Host)) {
			// With an @ behind it, what looks like the host may be a part of the password.
			return nil, errServers
		}
		if port := u.Port(); port != "" {
			if _, err := strconv.ParseUint(port, 10, 16); err != nil {
				return nil, errServers
			}
		}
		server := Server{URL: url.URL{Scheme: u.Scheme, Host: u.Host}, Login: at >= 0}
		if _, both := u.User.Password(); both { // alone it is a token
			server.User = u.User.Username()
		}
		all = append(all, server)
	}
	return all, nil
}

// ServerList gives a list of NATS URLs with *** in place of each login, as it can be given to another command once that is
// filled in. Of a list that cannot be read nothing is left.
func ServerList(list string) string {
	all, err := Servers(list)
	if err != nil {
		return login
	}
	var out []string
	for _, s := range all {
		if s.Login {
			out = append(out, s.URL.Scheme+"://"+login+"@"+s.URL.Host)
		} else {
			out = append(out, s.URL.String())
		}
	}
	return strings.Join(out, ",")
}

// loginInText finds the login of a URL, to the last @ before white space or a quote. An entry of a list that is masked
// already is found by itself.
var loginInText = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)(?:\*\*\*@[A-Za-z0-9.:\[\]-]+,|[^\s"'<>]*@)`)

// Logins masks the login of each URL in a text.
func Logins(s string) string {
	if !strings.Contains(s, "://") {
		return s
	}
	return loginInText.ReplaceAllStringFunc(s, func(found string) string {
		if strings.HasSuffix(found, ",") {
			return found
		}
		scheme, _, _ := strings.Cut(found, "://")
		return scheme + "://" + login + "@"
	})
}

var (
	// sigInText finds a UserSig by its name in a query that a server sent back, whatever was done to its characters.
	sigInText = regexp.MustCompile(`(?i)(usersig(?:=|%3d|"?\s*:\s*"?))[^&\s"'<>,;)\]}]+`)
	// sigStart finds a UserSig by its own look: zlib makes the first two characters the same. It has the characters of its
	// own base64 or those of the standard one, which may be escaped in a URL or in JSON.
	sigStart = regexp.MustCompile(`eJ[A-Za-z0-9*_+/=%\\-]{40,}`)
)

// UserSigs masks the secrets, and whatever looks like a UserSig.
func UserSigs(s string, secrets ...string) string {
	for _, text := range secrets {
		if text != "" {
			s = strings.ReplaceAll(s, text, secret)
		}
	}
	s = sigInText.ReplaceAllString(s, "${1}"+secret)
	return sigStart.ReplaceAllString(s, secret)
}

// SigForms lists the forms in which a UserSig can come back: in its own base64 or in the standard one, as it is, escaped
// for a query, or with the blanks that a query's plus signs become.
func SigForms(sig string) []string {
	if sig == "" {
		return nil
	}
	standard := strings.NewReplacer("*", "+", "-", "/", "_", "=").Replace(sig)
	return []string{
		sig, url.QueryEscape(sig),
		standard, url.QueryEscape(standard), strings.ReplaceAll(standard, "+", " "), strings.ReplaceAll(standard, "/", `\/`),
	}
}

// Visible escapes, as JSON does, what a terminal would not show but obey: control characters, and marks that change the
// direction of a text. Bytes that are no UTF-8 come out as \x9b. The characters of keep stay.
func Visible(s, keep string) string {
	clean := func(r rune) bool {
		return r != utf8.RuneError && !unicode.IsControl(r) && !unicode.In(r, unicode.Bidi_Control, unicode.Zl, unicode.Zp) ||
			strings.ContainsRune(keep, r)
	}
	if strings.IndexFunc(s, func(r rune) bool { return !clean(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case r == utf8.RuneError || clean(r):
			b.WriteString(s[i : i+size])
		case r == '\n':
			b.WriteString(`\n`)
		default:
			for _, unit := range utf16.Encode([]rune{r}) {
				fmt.Fprintf(&b, `\u%04x`, unit)
			}
		}
		i += size
	}
	return b.String()
}
