"""How fast training is: what an iteration costs (measure), where its time goes (trace), what the device could do
(peaks), and the table that says so (report)."""
