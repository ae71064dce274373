"""A server for one language model, with the interface of OpenAI's: what is asked, how it is answered, and the loop."""
