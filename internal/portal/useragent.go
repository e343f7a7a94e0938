package portal

// UserAgent returns the user agent of the gateway (§1.2), as in
// "Debian/12.0.0 gateway/1.5.3 (x86_64; 6.1.0-13-amd64)". The version must be
// strict three-part SemVer (§5.3). Empty architecture and kernel are left out,
// an empty name or version of the operating system reads "Unknown". Everything
// but printable ASCII is removed.
func UserAgent(os, osVersion, version, arch, kernel string) string {
	os, osVersion, version = header(os), header(osVersion), header(version)
	arch, kernel = header(arch), header(kernel)
	if os == "" {
		os = "Unknown"
	}
	if osVersion == "" {
		osVersion = "Unknown"
	}
	ua := os + "/" + osVersion + " gateway/" + version
	switch {
	case arch != "" && kernel != "":
		ua += " (" + arch + "; " + kernel + ")"
	case arch != "":
		ua += " (" + arch + ")"
	case kernel != "":
		ua += " (" + kernel + ")"
	}
	return ua
}

func header(s string) string { return printable(s, maxText) }
