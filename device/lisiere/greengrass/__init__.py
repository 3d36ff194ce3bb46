"""The Greengrass component: `lisiere run --greengrass`, from the nucleus' configuration to the component's end."""

from lisiere.greengrass.component import Component

__all__ = ["Component"]
