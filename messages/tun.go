package messages

// ConfigureTUN puts the gateway's addresses, as last assigned, with routes and
// rules on the device. Repeating it is harmless.
type ConfigureTUN struct{}

// TUNLost reports that the device stopped working, for example because somebody
// deleted it.
type TUNLost struct{ Cause error }
