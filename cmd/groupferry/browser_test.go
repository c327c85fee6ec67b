package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// A browser is a headless Chromium, driven by the WebDriver protocol. Whatever it asks of another host than that of its page,
// and whatever it complains about, fails the test.
type browser struct {
	t       testing.TB
	session string // URL
	origin  string // of the page
	asked   bool   // a request of it was logged
}

// startBrowser skips the test where there is no Chromium; but in CI, which installs it.
func startBrowser(t testing.TB) *browser {
	t.Helper()
	driver, err := exec.LookPath("chromedriver")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("chromedriver is not installed: %v", err)
		}
		t.Skip("chromedriver is not installed")
	}
	profile := t.TempDir() // removed when the browser has ended
	cmd := exec.Command(driver, "--port=0")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	b := &browser{t: t}
	for lines := bufio.NewScanner(out); b.session == "" && lines.Scan(); {
		if _, port, found := strings.Cut(lines.Text(), "started successfully on port "); found {
			b.session = "http://127.0.0.1:" + strings.TrimSuffix(port, ".") + "/session"
		}
	}
	go io.Copy(io.Discard, out)
	var made struct {
		ID string `json:"sessionId"`
	}
	b.ask(http.MethodPost, "", map[string]any{"capabilities": map[string]any{"alwaysMatch": map[string]any{
		"goog:chromeOptions": map[string]any{"args": []string{
			"--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run",
			"--disable-background-networking", "--disable-component-update", "--user-data-dir=" + profile, "--window-size=1200,900",
		}},
		"goog:loggingPrefs": map[string]string{"browser": "ALL", "performance": "ALL"},
	}}}, &made)
	b.session += "/" + made.ID
	t.Cleanup(func() { b.ask(http.MethodDelete, "", nil, nil) })
	return b
}

// ask makes a request of the driver.
func (b *browser) ask(method, path string, body, value any) {
	b.t.Helper()
	if err := b.try(method, path, body, value); err != nil {
		b.t.Fatal(err)
	}
}

func (b *browser) try(method, path string, body, value any) error {
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return err
		}
	}
	request, err := http.NewRequest(method, b.session+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	got := struct {
		Value json.RawMessage `json:"value"`
	}{}
	if err := json.NewDecoder(response.Body).Decode(&got); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("webdriver: %s %s: %s", method, path, got.Value)
	}
	if value == nil {
		return nil
	}
	return json.Unmarshal(got.Value, value)
}

func (b *browser) open(url string) {
	b.t.Helper()
	b.origin = url
	b.ask(http.MethodPost, "/url", map[string]string{"url": url}, nil)
}

// run returns what a script returns, as text.
func (b *browser) run(script string) string {
	b.t.Helper()
	var value any
	b.ask(http.MethodPost, "/execute/sync", map[string]any{"script": script, "args": []any{}}, &value)
	return fmt.Sprint(value)
}

// text is that of an element that is shown; "" where there is none.
func (b *browser) text(css string) string {
	b.t.Helper()
	return b.run(fmt.Sprintf("const e = document.querySelector(%q); return e && e.checkVisibility() ? e.innerText : ''", css))
}

// await waits until an element is shown with that text in it.
func (b *browser) await(css, text string) {
	b.t.Helper()
	for end := time.Now().Add(patience); !strings.Contains(b.text(css), text); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("waited %v in vain for %q in %s; the page has:\n%s", patience, text, css, b.text("body"))
		}
	}
}

// element returns the path of an element, as soon as it is shown.
func (b *browser) element(css string) string {
	b.t.Helper()
	var found map[string]string
	await(b.t, "an element "+css, func() bool {
		return b.run(fmt.Sprintf("const e = document.querySelector(%q); return Boolean(e && e.checkVisibility() && !e.disabled)", css)) == "true" &&
			b.try(http.MethodPost, "/element", map[string]string{"using": "css selector", "value": css}, &found) == nil
	})
	for _, id := range found {
		return "/element/" + id
	}
	return ""
}

func (b *browser) click(css string) {
	b.t.Helper()
	b.ask(http.MethodPost, b.element(css)+"/click", map[string]any{}, nil)
}

func (b *browser) write(css, text string) {
	b.t.Helper()
	b.ask(http.MethodPost, b.element(css)+"/value", map[string]string{"text": text}, nil)
}

// complaints returns what the console has, and requests to anywhere but the page's own process.
func (b *browser) complaints() (all []string) {
	b.t.Helper()
	var entries []struct{ Level, Message string }
	b.ask(http.MethodPost, "/se/log", map[string]string{"type": "browser"}, &entries)
	for _, e := range entries {
		all = append(all, e.Level+" "+e.Message)
	}
	entries = nil
	b.ask(http.MethodPost, "/se/log", map[string]string{"type": "performance"}, &entries)
	for _, e := range entries {
		var m struct {
			Message struct {
				Method string
				Params struct {
					DocumentURL string // of the page that asks, which may be the browser's own
					Request     struct{ URL string }
				}
			}
		}
		if json.Unmarshal([]byte(e.Message), &m) != nil || m.Message.Method != "Network.requestWillBeSent" ||
			!strings.HasPrefix(m.Message.Params.DocumentURL, b.origin) {
			continue
		}
		b.asked = true
		if url := m.Message.Params.Request.URL; !strings.HasPrefix(url, b.origin) {
			all = append(all, "a request to "+url)
		}
	}
	if !b.asked {
		all = append(all, "no request was logged")
	}
	return all
}

// resize makes the window so wide.
func (b *browser) resize(width int) {
	b.t.Helper()
	b.ask(http.MethodPost, "/goog/cdp/execute", map[string]any{"cmd": "Emulation.setDeviceMetricsOverride", "params": map[string]any{
		"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": false}}, nil)
}
