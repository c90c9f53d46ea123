from tinyrm.telemetry import disable_telemetry

disable_telemetry()  # here, because this file is run before a module of this package imports a runtime
