package chat

import (
	"fmt"
	"net"
	"net/url"
	"strings"
)

// regions are the hosts of the vendor's document on calling the API. Mumbai is in older editions of it only.
var regions = [...]struct{ name, host string }{
	{"china", "console.tim.qq.com"},
	{"singapore", "adminapisgp.im.qcloud.com"},
	{"seoul", "adminapikr.im.qcloud.com"},
	{"tokyo", "adminapijpn.im.qcloud.com"},
	{"frankfurt", "adminapiger.im.qcloud.com"},
	{"mumbai", "adminapiind.im.qcloud.com"},
	{"siliconvalley", "adminapiusa.im.qcloud.com"},
	{"jakarta", "adminapiidn.im.qcloud.com"},
}

// Regions lists the names that [RegionURL] knows.
func Regions() []string {
	names := make([]string, len(regions))
	for i, r := range regions {
		names[i] = r.name
	}
	return names
}

// RegionURL returns the base URL of a region. The error for an unknown name lists the known ones.
func RegionURL(name string) (string, error) {
	for _, r := range regions {
		if r.name == name {
			return "https://" + r.host, nil
		}
	}
	return "", fmt.Errorf("region %q is none of %s", name, strings.Join(Regions(), ", "))
}

// InsecureURL reports whether u is plain http to a host that is not this machine: the UserSig, which is as good as a
// password, would cross the network readable. It is false for a URL that cannot be parsed; [New] refuses that.
func InsecureURL(u string) bool {
	p, err := url.Parse(u)
	if err != nil || !strings.EqualFold(p.Scheme, "http") {
		return false
	}
	host := p.Hostname()
	ip := net.ParseIP(host)
	return !strings.EqualFold(host, "localhost") && (ip == nil || !ip.IsLoopback())
}
